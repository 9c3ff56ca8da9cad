"""Benchmarks that are commands: python -m mad.bench data | step."""
