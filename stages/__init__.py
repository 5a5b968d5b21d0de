"""The pipeline: a folder a stage, in the order fetch < vocab < features < train < evaluate < register."""
