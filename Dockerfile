# Dandap in a container, as a user without rights; data, runs and fetched bases lie in the folder one stands in:
#   docker build -t dandap .
#   docker run --rm --gpus all -v "$PWD:/work" dandap dandap-train --recipe kanana-1.5-8b
# torch of PyPI brings CUDA along; without --gpus all it computes on the CPU.
FROM python:3.12-slim-bookworm

# Triton, which makes FlexAttention's kernels on the GPU, calls a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dandap
# The requirements come first: a change of the code does not install them again.
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
