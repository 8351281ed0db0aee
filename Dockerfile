# `detrkit serve` on CPUs, or on NVIDIA GPUs:
#   docker build -t detrkit .
#   docker build -t detrkit:cuda --build-arg DEVICE=cuda .
# with the model of a run folder, and for a GPU with --gpus all:
#   docker run --init --publish 127.0.0.1:8000:8000 --volume "$PWD/runs/first:/model:ro" detrkit
ARG PYTHON=3.12
ARG DEVICE=cpu

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim AS cpu
# The default package of PyTorch also runs on CPUs, but brings 3 GB of CUDA libraries. PyTorch has an index of builds without
# them: its address is in the command that https://pytorch.org/get-started/locally shows for Linux, pip and CPU.
ARG TORCH_INDEX=""
RUN PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir "torch>=2.11" "torchvision>=0.26"

FROM python:${PYTHON}-slim AS cuda
RUN pip install --no-cache-dir "torch>=2.11" "torchvision>=0.26"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM ${DEVICE}
# serve,export also serves .onnx files; serve,openvino those of OpenVINO
ARG EXTRAS=serve
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/detrkit-*.whl)[$EXTRAS]" \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin detrkit

ENV PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s CMD ["python", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["detrkit", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]
