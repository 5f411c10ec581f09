-- Paid transactions per three seconds of event time, each window once it is final: one job.

CREATE TABLE transactions (
    `key` STRING,
    user_id STRING NOT NULL,
    amount DOUBLE NOT NULL,
    status STRING NOT NULL,
    event_time TIMESTAMP(3) NOT NULL,
    arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
    `partition` INT METADATA VIRTUAL,
    `offset` BIGINT METADATA VIRTUAL,
    ahead AS event_time > CAST(arrived AS TIMESTAMP(3)) + INTERVAL '1' HOUR,
    -- One record from the far future would make all that follow late: it does not move the time on.
    WATERMARK FOR event_time AS
        CASE WHEN event_time > CAST(arrived AS TIMESTAMP(3)) + INTERVAL '1' HOUR THEN CAST(NULL AS TIMESTAMP(3))
        ELSE event_time - INTERVAL '1' SECOND END
) WITH (
    'connector' = 'kafka',
    'topic' = 'transactions',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.group.id' = 'transactions.flink',
    'scan.startup.mode' = 'earliest-offset',
    -- with every record: else the time might stand a little behind the newest one for as long as nothing follows
    'scan.watermark.emit.strategy' = 'on-event',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}',
    'value.fields-include' = 'EXCEPT_KEY'
);

CREATE TABLE transactions_aggregate_flink (
    `key` STRING,
    window_start TIMESTAMP(3) NOT NULL,
    window_end TIMESTAMP(3) NOT NULL,
    total_amount DOUBLE NOT NULL,
    transactions BIGINT NOT NULL,
    avg_amount DOUBLE NOT NULL
) WITH (
    'connector' = 'kafka',
    'topic' = 'transactions_aggregate_flink',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.transaction.timeout.ms' = '600000',
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = 'transactions.flink',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}',
    'value.avro-confluent.subject' = 'transactions_aggregate_flink-value',
    -- the text of schemas/aggregate.avsc: Flink would make up one of its own and register it
    'value.avro-confluent.schema' = '{
      "type": "record", "name": "TransactionsAggregate", "namespace": "venice.transactions",
      "doc": "Paid transactions of one three-second window of event time.",
      "fields": [
        {"name": "window_start", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "window_end", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "total_amount", "type": "double"},
        {"name": "transactions", "type": "long"},
        {"name": "avg_amount", "type": "double"}
      ]
    }',
    'value.fields-include' = 'EXCEPT_KEY'
);

CREATE TABLE dead_letters (
    `key` STRING,
    user_id STRING NOT NULL,
    amount DOUBLE NOT NULL,
    status STRING NOT NULL,
    event_time TIMESTAMP(3) NOT NULL,
    arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp',
    headers MAP<STRING NOT NULL, BYTES> METADATA
) WITH (
    'connector' = 'kafka',
    'topic' = 'dlq.transactions',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.transaction.timeout.ms' = '600000',
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = 'transactions.flink.dead',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}',
    'value.avro-confluent.subject' = 'transactions-value',
    -- the text of schemas/transaction.avsc: so the dead letter is the record as it came
    'value.avro-confluent.schema' = '{
      "type": "record", "name": "Transaction", "namespace": "venice.transactions",
      "doc": "One transaction of a user. The record''s key is its user_id.",
      "fields": [
        {"name": "user_id", "type": "string", "doc": "begins with the digit that says what the user pays: ten times it, 10 for 0"},
        {"name": "amount", "type": "double"},
        {"name": "status", "type": "string", "doc": "paid, or one that does not count"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}}
      ]
    }',
    'value.fields-include' = 'EXCEPT_KEY'
);

-- Only the sums look at the status: events of any status move the time on.
INSERT INTO transactions_aggregate_flink
SELECT
    CAST(UNIX_TIMESTAMP(CAST(window_start AS STRING)) * 1000 AS STRING),
    window_start,
    window_end,
    SUM(amount),
    COUNT(*),
    AVG(amount)
FROM TUMBLE(TABLE transactions, DESCRIPTOR(event_time), INTERVAL '3' SECONDS)
WHERE status = 'paid' AND NOT ahead
GROUP BY window_start, window_end;

-- In the form of Kafka Connect's dead letters, which `venice dlq` reads.
INSERT INTO dead_letters
SELECT
    `key`,
    user_id,
    amount,
    status,
    event_time,
    arrived,
    MAP[
        '__connect.errors.topic', ENCODE('transactions', 'UTF-8'),
        '__connect.errors.partition', ENCODE(CAST(`partition` AS STRING), 'UTF-8'),
        '__connect.errors.offset', ENCODE(CAST(`offset` AS STRING), 'UTF-8'),
        '__connect.errors.connector.name', ENCODE('transactions.flink', 'UTF-8'),
        '__connect.errors.exception.message', ENCODE('event_time is more than an hour ahead', 'UTF-8')
    ]
FROM transactions
WHERE ahead;
