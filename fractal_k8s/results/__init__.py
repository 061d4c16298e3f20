"""The contract between workers and analysis: outcome, verdict, schema, store, grid."""
