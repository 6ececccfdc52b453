"""Benchmark suites and reports: results files to tables, figures and one page."""
