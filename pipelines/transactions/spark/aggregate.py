"""Spark: paid transactions per three seconds of event time, each window once it is final.

Reads INPUT (Avro framed by the schema registry), writes OUTPUT (key: window_start in milliseconds since 1970; Avro) and
DEAD_LETTERS (the record as it came; the reason in its headers). After a crash a window may be written twice, with the same key
and the same numbers: who upserts by key has each once.
"""

import json
import os
import urllib.request

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (what everybody calls it)
from pyspark.sql.avro.functions import from_avro, to_avro

INPUT = os.environ.get("INPUT", "transactions")
OUTPUT = os.environ.get("OUTPUT", "transactions_aggregate_spark")
DEAD_LETTERS = os.environ.get("DEAD_LETTERS", "dlq.transactions_spark")
CHECKPOINT = "file://" + os.environ["CHECKPOINT"]
KAFKA = {"kafka.bootstrap.servers": os.environ["BOOTSTRAP_SERVERS"]}
WINDOW = "3 seconds"
# how much later than the newest an event may come and still count
LATENESS = "1 second"
# Events further ahead of their arrival than this would close all windows up to theirs.
AHEAD = F.expr("INTERVAL 1 HOUR")


def registry(path: str):
    """The schema registry's answer."""
    with urllib.request.urlopen(f"{os.environ['SCHEMA_REGISTRY_URL']}{path}", timeout=10) as answer:  # noqa: S310 (Venice's own)
        return json.load(answer)


def versions(topic: str) -> dict[int, str]:
    """Ids and texts of all versions of a topic's value schema, the latest last."""
    subject = f"/subjects/{topic}-value/versions"
    found = [registry(f"{subject}/{number}") for number in sorted(registry(subject))]
    return {version["id"]: version["schema"] for version in found}


def decoded(value: Column, schemas: dict[int, str]) -> Column:
    """A framed record as the latest schema reads it; NULL for what is none of these schemas'."""
    latest = list(schemas.values())[-1]
    ident = F.conv(F.hex(F.substring(value, 2, 4)), 16, 10).cast("long")
    body = F.expr("substring(value, 6)")
    framed = F.hex(F.substring(value, 1, 1)) == "00"
    found = F.lit(None)
    for number, writer in schemas.items():
        read = from_avro(body, writer, {"mode": "PERMISSIVE", "avroSchema": latest})
        found = F.when(framed & (ident == number), read).otherwise(found)
    return found


def framed(record: Column, ident: int, schema: str) -> Column:
    """Avro with the registry's five bytes before it."""
    return F.concat(F.lit(b"\0" + ident.to_bytes(4, "big")), to_avro(record, schema))


def read(spark: SparkSession) -> DataFrame:
    """All records with `event`, and `wrong`: why one is not counted, NULL for those that are.

    No limit on what a batch reads: a batch that has one partition's newest records and not yet another's makes those late.
    """
    records = spark.readStream.format("kafka").options(**KAFKA).option("subscribe", INPUT).option("startingOffsets", "earliest").load()
    found = records.withColumn("event", decoded(F.col("value"), versions(INPUT)))
    # a producer may set a record's timestamp, too, so that alone is no measure
    arrived = F.least(F.col("timestamp"), F.current_timestamp())
    return found.withColumn(
        "wrong",
        F.when(F.col("event.event_time").isNull(), f"not Avro of a schema that {INPUT}-value has").when(
            F.col("event.event_time") > arrived + AHEAD, "event_time is more than an hour ahead"
        ),
    )


def aggregate(records: DataFrame) -> DataFrame:
    """Sum, count and average of each window's paid transactions.

    Only the sums look at the status: events of any status move the time on. A filter on it would be moved before the watermark.
    """
    paid = "FILTER (WHERE status = 'paid')"
    return (
        records.where("wrong IS NULL")
        .select("event.*")
        .withWatermark("event_time", LATENESS)
        .groupBy(F.window("event_time", WINDOW))
        .agg(
            F.expr(f"sum(amount) {paid}").alias("total_amount"),
            F.expr(f"count(*) {paid}").alias("transactions"),
            F.expr(f"avg(amount) {paid}").alias("avg_amount"),
        )
        .where("transactions > 0")
        .select(
            F.col("window.start").alias("window_start"),
            F.col("window.end").alias("window_end"),
            "total_amount",
            "transactions",
            "avg_amount",
        )
    )


def main() -> None:
    """Start both queries; end when one of them fails, and Venice starts the job again."""
    spark = SparkSession.builder.getOrCreate()
    records = read(spark)
    ident, schema = list(versions(OUTPUT).items())[-1]
    windows = aggregate(records).select(
        F.unix_millis("window_start").cast("string").alias("key"), framed(F.struct("*"), ident, schema).alias("value")
    )
    refused = records.where("wrong IS NOT NULL").select(
        "key",
        "value",
        F.array(
            *[
                F.struct(F.lit(name).alias("key"), F.encode(text, "UTF-8").alias("value"))
                for name, text in (
                    ("error", F.col("wrong")),
                    ("topic", F.col("topic")),
                    ("partition", F.col("partition").cast("string")),
                    ("offset", F.col("offset").cast("string")),
                )
            ]
        ).alias("headers"),
    )
    for name, frame, topic in (("aggregate", windows, OUTPUT), ("dead_letters", refused, DEAD_LETTERS)):
        frame.writeStream.queryName(name).format("kafka").options(**KAFKA).option("topic", topic).option(
            "checkpointLocation", f"{CHECKPOINT}/{name}"
        ).trigger(processingTime="1 second").start()
    spark.streams.awaitAnyTermination()


if __name__ == "__main__":
    main()
