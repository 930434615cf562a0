# Dandap in a container, as an unprivileged user; data, runs and downloaded bases are in the current folder:
#   docker build -t dandap .
#   docker run --rm --gpus all -v "$PWD:/work" dandap dandap-train --recipe kanana-1.5-8b
# PyPI's torch includes CUDA; without --gpus all it uses the CPU.
FROM python:3.12-slim-bookworm

# Triton compiles FlexAttention kernels and needs a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dandap
# Requirements first: a change of the code does not reinstall them.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps -e . \
    && useradd --uid 1000 --create-home dandap \
    && mkdir /work \
    && chown dandap /work

USER 1000
WORKDIR /work
ENV HF_HOME=/work/.huggingface
CMD ["dandap-train", "--help"]
