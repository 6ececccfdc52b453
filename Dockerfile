# Trains or serves: `docker build -t multitask .`, then docs/serving.md, "Container".

# Python 3.11 or newer with venv and pip; a Debian base where PACKAGES is used.
ARG BASE=docker.io/library/python:3.12-slim
FROM ${BASE}

# Where the wheel of torch comes from; for CUDA 13.0: https://download.pytorch.org/whl/cu130, which brings CUDA's
# libraries as wheels, so that BASE needs none.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve,ko,gguf
# Debian packages; torch.compile needs "gcc libc6-dev".
ARG PACKAGES=""
# hadolint ignore=DL3008,SC2086
RUN if [ -n "${PACKAGES}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends ${PACKAGES} \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# An environment of its own: the Python of a distribution may be closed to pip.
ENV PATH=/opt/multitask/bin:${PATH}
RUN python3 -m venv /opt/multitask
WORKDIR /opt/multitask/source

# Three layers, by how often they change: torch, the other dependencies, the package. The index of torch is used for
# torch alone and is not one of several: pip skips an index that does not answer, and takes the CUDA build of PyPI.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch \
    && pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml ./
RUN python -c "import os, tomllib; \
        project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = os.environ['EXTRAS'].replace(',', ' ').split(); \
        print(*project['dependencies'], *(r for e in extras for r in project['optional-dependencies'][e]), sep='\n')" \
        > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY LICENSE README.md ./
COPY configs configs
COPY multitask multitask
COPY tasks tasks
RUN pip install --no-cache-dir --no-deps . \
    && rm -rf build \
    && pip check

# Runs, data and caches are in /work, which any user may write: with `--user` there is no home folder of that user.
ENV HOME=/work \
    MPLCONFIGDIR=/work/.cache/matplotlib
RUN install --directory --mode 1777 /work
WORKDIR /work
VOLUME /work
USER 1000:1000
EXPOSE 8000
ENTRYPOINT ["multitask"]
CMD ["--help"]
