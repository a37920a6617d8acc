# An agent's image for docker and kubernetes pools (docs/fleet.md): the steps are the Make targets of a fresh clone, nothing else.
# On a GPU host pip takes torch's CUDA build, which brings its own CUDA: the host gives the driver alone (--gpus all).
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /persres
COPY . .
RUN make setup PYTHON=python3
ENV PATH=/persres/.venv/bin:$PATH PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
# docker and kubernetes pools name their own command; by itself the image is an agent of one GPU, for a pool of type process. To stop it
# as it wants to be stopped: docker stop --time 140, or on Kubernetes terminationGracePeriodSeconds: 140
CMD ["python", "-m", "flows.agent", "--pool", "persres-gpu"]
