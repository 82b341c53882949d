"""How fast it is, beside others (`make bench`), and a check of what it costs that needs no clock (`test_costs.py`)."""
