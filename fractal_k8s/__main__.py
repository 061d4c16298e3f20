"""`python -m fractal_k8s` is the same program as `fractal-k8s`."""

from fractal_k8s.cli import main

if __name__ == "__main__":
    main()
