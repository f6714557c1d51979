"""The whole path in one command: ``python -m demo`` (``make demo``).

Starts three brokers and an Airflow, runs ``dags/daily_close.py``, sends it messages, shows what happens and checks it.
"""
