"""Parts of compare.py: data, models and their costs, the cells, tables and figures."""
