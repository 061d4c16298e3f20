"""Scenarios of a sweep on a cluster: on the stand-in, or on any real one.

    pytest tests/cluster
    pytest tests/cluster --context NAME --image IMAGE --store s3://BUCKET/PREFIX [...]

Without --context each test has a stand-in cluster of its own. On a real one the namespace must be
there, the store must be readable from here, and every sweep that a test has made is deleted after
it, with its results. Claims with the golden checkpoint (the content of tests/golden/nanochat-d4 and
an empty file READY) and its conversations.jsonl (and READY) let the scenarios of a language model
run there too. Four pods of 250m CPUs and 2 GiB must fit at once; on a slow cluster give --timeout
1800 as well. What only a stand-in can do is skipped with the reason.
"""
