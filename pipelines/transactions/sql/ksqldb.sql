-- Paid transactions in windows of three seconds of their own time, each window once, when it is closed.
-- A window closes when a paid transaction comes whose time is a second (GRACE PERIOD) or more after the window's end.
SET 'ksql.streams.auto.offset.reset' = 'earliest';

CREATE STREAM IF NOT EXISTS transactions (
    id STRING KEY,
    user_id INT,
    amount DOUBLE,
    status STRING,
    ts BIGINT
) WITH (
    KAFKA_TOPIC = 'transactions',
    KEY_FORMAT = 'KAFKA',
    VALUE_FORMAT = 'AVRO',
    TIMESTAMP = 'ts'
);

-- One key for all: ksqlDB aggregates by a key only. Records have it, with their window's start behind it, as key, and no column for it.
-- Names in backticks keep their case; without them the fields of the values would be in capitals.
CREATE TABLE transactions_aggregate_ksql WITH (
    KAFKA_TOPIC = 'transactions_aggregate_ksql',
    KEY_FORMAT = 'KAFKA',
    VALUE_FORMAT = 'AVRO',
    PARTITIONS = 1,
    REPLICAS = ${replication_factor}
) AS
SELECT
    'paid' AS `status`,
    WINDOWSTART AS `window_start`,
    WINDOWEND AS `window_end`,
    SUM(amount) AS `total_amount`,
    COUNT(*) AS `transactions`,
    AVG(amount) AS `avg_amount`
FROM transactions
WINDOW TUMBLING (SIZE 3 SECONDS, GRACE PERIOD 1 SECONDS)
WHERE status = 'paid'
GROUP BY 'paid'
EMIT FINAL;
