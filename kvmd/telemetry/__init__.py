"""Metrics, logs, events and sd_notify: all from plain data that others hand over."""
