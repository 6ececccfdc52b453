// Requests to the server that the page came from.

import { forSession } from "./dom.js";

const KEY = "multitask.key";

export class RequestError extends Error {
  // status: of HTTP; 0: no answer at all.
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const setKey = (key) => forSession.set(KEY, key);
export const hasKey = () => Boolean(forSession.get(KEY));

async function send(path, options = {}) {
  const key = forSession.get(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "");
  }
  if (response.ok) return response;
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch { /* no error of ours: its status says enough */ }
  throw new RequestError(response.status, typeof message === "string" ? message : "");
}

export async function read(path) {
  const response = await send(path);
  return readJson(response);
}

async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "");
  }
}

export async function download(path, name) {
  const blob = await (await send(path)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The prediction of one row; with body.stream each token is handed to onToken({text, token}) when it is there.
export async function predict(task, body, signal, onToken) {
  const response = await send(`/v1/tasks/${encodeURIComponent(task)}/predict`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!body.stream) return (await readJson(response)).predictions[0];
  let prediction = null;
  for await (const event of events(response)) {
    if (event.error) throw new RequestError(Number(event.error.status) || 500, String(event.error.message ?? ""));
    if (event.prediction !== undefined) prediction = event.prediction;
    else onToken(event);
  }
  if (prediction === null) throw new RequestError(0, "");
  return prediction;
}

// Server-sent events as objects, up to [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      text = (text + (value ?? "")).replaceAll("\r\n", "\n");
      const parts = text.split("\n\n");
      text = done ? "" : parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:"));
        const joined = data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (joined === "[DONE]") return;
        if (joined) yield JSON.parse(joined);
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof RequestError) throw error;
    throw new RequestError(0, "");
  } finally {
    reader.cancel().catch(() => {});
  }
}
