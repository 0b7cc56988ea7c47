"""Pages without a script: the report of a training run, and the parts that all pages share.

style                 the style sheet
charts, chart_parts   charts as inline SVG
gallery               pairs and completions as cards
numbers, page         the report
"""
