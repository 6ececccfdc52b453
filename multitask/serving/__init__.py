"""A trained run in the browser and over HTTP: the playground, the run page, OpenAI's completions."""
