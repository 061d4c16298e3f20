"""One file per data set. Data sets know nothing of sweeps, stores or Kubernetes."""
