"""The contract between workers and analysis: outcome, verdict, schema, store, grid."""

from typing import Final

DEFAULT_STORE: Final = "./runs"
