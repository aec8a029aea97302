# stmbench on a GPU box:
#   docker build -t stmbench .
#   docker run --gpus all --ipc=host -v "$PWD/runs:/runs" -v "$PWD/data:/data" \
#     stmbench run --mixer halo --stage all
FROM python:3.12-slim-bookworm

# g++ is what torch.compile needs at run time: Triton's launchers and Inductor's CPU kernels.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

# The ordinary torch wheel brings its own CUDA libraries; only the host's driver is needed.
WORKDIR /opt/stmbench
COPY pyproject.toml README.md LICENSE ./
COPY stmbench stmbench
COPY recipes recipes
COPY sweeps sweeps
RUN pip install --no-cache-dir '.[detection]'

RUN useradd --create-home --uid 1000 stmbench \
 && mkdir /data /runs \
 && chown stmbench /data /runs
USER stmbench
WORKDIR /home/stmbench
ENV STMBENCH_DB=/runs/stmbench.db PYTHONUNBUFFERED=1
VOLUME ["/data", "/runs"]

ENTRYPOINT ["stmbench"]
CMD ["--help"]
