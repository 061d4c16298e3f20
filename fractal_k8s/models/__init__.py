"""One file per model. Models know nothing of sweeps, stores or Kubernetes."""
