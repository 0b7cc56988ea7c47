"""`vlm-contextrl study`: arms x seeds at equal budgets, one table, one page.

settings   what a study file says
data       the datasets that all cells share
cells      one arm with one seed: its configuration and its folder
budgets    what every arm may use, and what it did use
workers    the processes of the cells, several at a time; each one is `cell_process`
measures   what a trained model is measured by
results    means over seeds with intervals, differences to the baseline (study.json)
tables     the same in words (study.md)
curves     learning curves, mean and range over seeds
charts, page   the report (study.html)
run        all of it
"""
