# The course in JupyterLab:
#     docker build -t maevit_course .
#     docker run --rm -p 8888:8888 maevit_course
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home learner
USER learner
WORKDIR /home/learner/maevit_course
COPY --chown=learner . .
RUN make .venv/.installed
EXPOSE 8888
CMD ["make", "lab", "ARGS=--ip=0.0.0.0 --no-browser"]
