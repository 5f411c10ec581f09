-- Paid transactions in windows of three seconds of their own time, each window once, when it is closed.
-- A window closes when a paid transaction comes whose time is a second (the grace period) or more after the window's end.
SET 'ksql.streams.auto.offset.reset' = 'earliest';

-- Columns are those of the topic's Avro schema.
CREATE STREAM IF NOT EXISTS transactions (record_key STRING KEY) WITH (
    KAFKA_TOPIC = 'transactions',
    KEY_FORMAT = 'KAFKA',
    VALUE_FORMAT = 'AVRO',
    TIMESTAMP = 'event_time'
);

-- ksqlDB aggregates by a key only, so all have the same; a record's key is that key with the window's start behind it.
-- Names in backticks keep their case: without them the fields of the values would be in capitals.
CREATE TABLE transactions_aggregate_ksql WITH (
    KAFKA_TOPIC = 'transactions_aggregate_ksql',
    KEY_FORMAT = 'KAFKA',
    VALUE_FORMAT = 'AVRO',
    PARTITIONS = 1,
    REPLICAS = ${replication_factor}
) AS
SELECT
    'paid' AS `status`,
    FROM_UNIXTIME(WINDOWSTART) AS `window_start`,
    FROM_UNIXTIME(WINDOWEND) AS `window_end`,
    SUM(amount) AS `total_amount`,
    COUNT(*) AS `transactions`,
    AVG(amount) AS `avg_amount`
FROM transactions
WINDOW TUMBLING (SIZE 3 SECONDS, GRACE PERIOD 1 SECONDS)
WHERE status = 'paid'
GROUP BY 'paid'
EMIT FINAL;
