"""Where weights and tokenizers come from; verified before they are used.

Knows nothing of sweeps, stores or Kubernetes.
"""
