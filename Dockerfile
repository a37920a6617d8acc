# A worker's image for docker and kubernetes pools (docs/fleet.md), built by the Make targets of a fresh clone.
# On a GPU host pip installs torch's CUDA build, which includes CUDA: the host needs only the driver (--gpus all).
#
# The base is pinned by digest, of the tag's index of all architectures; a digest never changes what it names. To move to another patch:
# docker buildx imagetools inspect python:3.11.N-slim-bookworm prints its digest.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home persres
WORKDIR /persres
COPY . .
# Code and environment belong to root: a run cannot change what the next one executes. It writes to these three folders alone, so that
# the root file system may be read-only.
RUN make setup PYTHON=python3 && (.venv/bin/python -m compileall -q .venv persres flows tasks || true) \
    && mkdir -p .work personal && chown -R 10001:10001 .work personal
ENV PATH=/persres/.venv/bin:$PATH HOME=/home/persres PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
VOLUME ["/persres/.work", "/persres/personal", "/home/persres"]
# By number, so that Kubernetes' runAsNonRoot can check it.
USER 10001:10001
# docker and kubernetes pools set their own command; without one the image is a worker of one GPU for a pool of type process. Stop it
# with docker stop --time 140, or on Kubernetes terminationGracePeriodSeconds: 140
CMD ["python", "-m", "flows.worker", "--pool", "persres-gpu"]
