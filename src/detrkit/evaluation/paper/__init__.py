"""Analyses of the DETR paper: decoder layers, queries, instance capacity."""
