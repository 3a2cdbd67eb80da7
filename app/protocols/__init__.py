"""Protocols: methods × subjects × seeds under one budget, with intervals, controls and a report."""
