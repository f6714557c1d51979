"""Close the books once the orders, the stock and all three shifts of the day are in.

``make demo`` runs this DAG. It needs the connections ``kafka_default``, ``aws_default`` and ``mqtt_default``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, SqsQueue

with DAG("daily_close", schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, tags=["example"]):
    inputs = EventGroup(
        "inputs",
        events={
            "orders": Event(KafkaTopic("etl-finish"), match={"table": ["orders"], "date": ["{{ ds }}"]}),
            "stock": Event(SqsQueue("stock-events"), match={"detail": {"status": ["COMPLETE"]}}),
            "shifts": Event(MqttTopic("plant/+/shift-end"), count=3),
        },
        timeout=timedelta(hours=6),
    )

    @task
    def close_books(orders: dict[str, Any], shifts: list[dict[str, Any]]) -> dict[str, Any]:
        """Use what the messages said."""
        return {"date": orders["date"], "rows": orders["rows"], "produced": sum(one["produced"] for one in shifts)}

    inputs >> close_books(inputs["orders"].output, inputs["shifts"].output)
