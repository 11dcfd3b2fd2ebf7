# rarefy with Ray for machines without a GPU: docker build -f jobs/docker/cpu.Dockerfile -t rarefy:cpu .
# PyPI's torch brings CUDA's libraries; PIP_EXTRA_INDEX_URL of an index with CPU builds makes the image gigabytes smaller.
FROM python:3.11.13-slim-bookworm

# g++ builds the CPU kernels at first use; KubeRay's probes use wget. Not pinned, because Debian removes old versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home rarefy

ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE ./
COPY manifests manifests
COPY pipeline pipeline
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[cluster,s3,gcs,hub]' \
    && rm -rf build

USER 1000
WORKDIR /home/rarefy
CMD ["rarefy", "--help"]
