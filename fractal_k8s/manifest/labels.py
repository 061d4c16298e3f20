"""Names of labels, annotations and variables on what is sent to a cluster."""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "fractal-k8s.io"

# --- labels: what `kubectl get -l` selects by ---

# on every object of a sweep; its value is the sweep's id
SWEEP: Final = f"{DOMAIN}/sweep"
# what an object is for: one of the constants below
COMPONENT: Final = "app.kubernetes.io/component"
WORKER: Final = "worker"
CACHE_FILL: Final = "cache-fill"
AGGREGATOR: Final = "aggregator"
REPRO: Final = "repro"  # trains points again, to compare them; never counted among the sweep's Jobs
NAME: Final = "app.kubernetes.io/name"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
VERSION: Final = "app.kubernetes.io/version"
PROGRAM: Final = "fractal-k8s"  # value of NAME and MANAGED_BY

# --- annotations of a Job ---

# sha256 of the sweep's canonical JSON: a Job of the same name with another one is another sweep
DIGEST: Final = f"{DOMAIN}/sweep-sha256"
# store that its workers write to, and the one that the person's own machine reads it from
STORE: Final = f"{DOMAIN}/store"
CLIENT_STORE: Final = f"{DOMAIN}/client-store"
# what a GPU costs per hour in USD
PRICE: Final = f"{DOMAIN}/usd-per-gpu-hour"
# GPUs, and so worker processes, of a pod
GPUS: Final = f"{DOMAIN}/gpus-per-pod"
# what its settings say beyond the defaults, as JSON: a later Job of the sweep runs the same way
SETTINGS: Final = f"{DOMAIN}/settings"
# a person has suspended it with `fractal-k8s pause`: Kueue, which suspends what waits, has not
PAUSED: Final = f"{DOMAIN}/paused"

# --- the ConfigMap with a site's defaults ---

SITE: Final = "fractal-k8s-site"  # its name
SITE_KEY: Final = "settings.yaml"  # its key

# --- Kubernetes' and Kueue's own ---

JOB_NAME: Final = "batch.kubernetes.io/job-name"
HOST_NAME: Final = "kubernetes.io/hostname"
INDEX: Final = "batch.kubernetes.io/job-completion-index"
QUEUE: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
MIN_PARALLELISM: Final = "kueue.x-k8s.io/job-min-parallelism"

# --- variables of a pod that come from a Secret ---

AWS_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
WANDB_KEY: Final = "WANDB_API_KEY"

# --- where things lie in a pod ---

PLAN_FOLDER: Final = "/etc/fractal-k8s"
PLAN_FILE: Final = "sweep.json"  # also the ConfigMap's key
MODEL_MOUNT: Final = "/cache/model"
DATASET_MOUNT: Final = "/cache/dataset"
CACHE_MOUNTS: Final = (MODEL_MOUNT, DATASET_MOUNT)
STORE_MOUNT: Final = "/store"  # where a store is a claim
SCRATCH: Final = "/scratch"
TERMINATION_LOG: Final = "/dev/termination-log"
CONTAINER: Final = "worker"
FILL_CONTAINER: Final = "fill"
READY: Final = "READY"  # the file of a cache that is written last
