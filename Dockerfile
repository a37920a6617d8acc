# A worker's image for docker and kubernetes pools (docs/fleet.md), built by the Make targets of a fresh clone.
# On a GPU host pip installs torch's CUDA build, which includes CUDA: the host needs only the driver (--gpus all).
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /persres
COPY . .
RUN make setup PYTHON=python3
ENV PATH=/persres/.venv/bin:$PATH PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
# docker and kubernetes pools set their own command; without one the image is a worker of one GPU for a pool of type process. Stop it
# with docker stop --time 140, or on Kubernetes terminationGracePeriodSeconds: 140
CMD ["python", "-m", "flows.worker", "--pool", "persres-gpu"]
