"""Rows that others wrote: image folders, jsonl, Parquet of any make.

values     single values: texts, images, options, chat prompts
formats    what an object of keys means, per format
parquet    the rows of Parquet files, streamed, as such objects
rows       what is at a path, as our rows; what cannot be used is a reject
imports    `pairs import`: a dataset folder made of them
"""
