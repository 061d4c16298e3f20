"""WHAT to run: two axes, a training config, a resolution, a verdict rule, a seed policy.

Nothing here knows where a sweep runs. No torch, and no I/O but the sweep's own file.
"""
