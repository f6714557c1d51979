"""What runs in Airflow's API server, which has the database. Only :mod:`event_triggers.plugin` imports it."""
