-- Edits per wiki per minute of event time, each window once it is final: one job.

CREATE TABLE wikimedia_changes (
    -- of the schema's fields those that are needed
    meta ROW<dt TIMESTAMP(3) NOT NULL> NOT NULL,
    `type` STRING NOT NULL,
    bot BOOLEAN NOT NULL,
    wiki STRING NOT NULL,
    arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
    event_time AS meta.dt,
    ahead AS meta.dt > CAST(arrived AS TIMESTAMP(3)) + INTERVAL '1' HOUR,
    -- One record from the far future would make all that follow late: it does not move the time on.
    WATERMARK FOR event_time AS
        CASE WHEN meta.dt > CAST(arrived AS TIMESTAMP(3)) + INTERVAL '1' HOUR THEN CAST(NULL AS TIMESTAMP(3))
        ELSE meta.dt - INTERVAL '2' SECOND END
) WITH (
    'connector' = 'kafka',
    'topic' = 'wikimedia_changes',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.group.id' = 'wikimedia.flink',
    'scan.startup.mode' = 'earliest-offset',
    -- Every partition is waited for: what the feed held back comes partition by partition, and none of it may be late.
    'scan.watermark.idle-timeout' = '0 s',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}'
);

CREATE TABLE wikimedia_edits_per_minute (
    `key` STRING,
    wiki STRING NOT NULL,
    window_start TIMESTAMP(3) NOT NULL,
    window_end TIMESTAMP(3) NOT NULL,
    edits BIGINT NOT NULL,
    new_pages BIGINT NOT NULL,
    bot_edits BIGINT NOT NULL
) WITH (
    'connector' = 'kafka',
    'topic' = 'wikimedia_edits_per_minute',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.transaction.timeout.ms' = '600000',
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = 'wikimedia.flink.edits_per_minute',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}',
    'value.avro-confluent.subject' = 'wikimedia_edits_per_minute-value',
    -- the text of schemas/edits.avsc: Flink would make up one of its own and register it
    'value.avro-confluent.schema' = '{
      "type": "record", "name": "WikimediaEdits", "namespace": "venice.wikimedia",
      "doc": "Edits of one wiki in one minute of event time. The record''s key is its wiki.",
      "fields": [
        {"name": "wiki", "type": "string"},
        {"name": "window_start", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "window_end", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "edits", "type": "long", "doc": "changed and new pages"},
        {"name": "new_pages", "type": "long"},
        {"name": "bot_edits", "type": "long"}
      ]
    }',
    'value.fields-include' = 'EXCEPT_KEY'
);

-- Compacted. Appended, not upserted: a wiki's windows come in their order, and the newest stays.
CREATE TABLE wikimedia_latest (
    `key` STRING,
    wiki STRING NOT NULL,
    window_start TIMESTAMP(3) NOT NULL,
    window_end TIMESTAMP(3) NOT NULL,
    edits BIGINT NOT NULL,
    new_pages BIGINT NOT NULL,
    bot_edits BIGINT NOT NULL
) WITH (
    'connector' = 'kafka',
    'topic' = 'wikimedia_latest',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.transaction.timeout.ms' = '600000',
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = 'wikimedia.flink.latest',
    'key.format' = 'raw',
    'key.fields' = 'key',
    'value.format' = 'avro-confluent',
    'value.avro-confluent.url' = '${registry_url}',
    'value.avro-confluent.subject' = 'wikimedia_latest-value',
    -- the text of schemas/edits.avsc: Flink would make up one of its own and register it
    'value.avro-confluent.schema' = '{
      "type": "record", "name": "WikimediaEdits", "namespace": "venice.wikimedia",
      "doc": "Edits of one wiki in one minute of event time. The record''s key is its wiki.",
      "fields": [
        {"name": "wiki", "type": "string"},
        {"name": "window_start", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "window_end", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "edits", "type": "long", "doc": "changed and new pages"},
        {"name": "new_pages", "type": "long"},
        {"name": "bot_edits", "type": "long"}
      ]
    }',
    'value.fields-include' = 'EXCEPT_KEY'
);

CREATE TEMPORARY VIEW edits AS
SELECT
    wiki AS `key`,
    wiki,
    window_start,
    window_end,
    COUNT(*) AS edits,
    COUNT(*) FILTER (WHERE `type` = 'new') AS new_pages,
    COUNT(*) FILTER (WHERE bot) AS bot_edits
FROM TUMBLE(TABLE wikimedia_changes, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)
WHERE `type` IN ('edit', 'new') AND NOT ahead
GROUP BY wiki, window_start, window_end;

INSERT INTO wikimedia_edits_per_minute SELECT * FROM edits;

INSERT INTO wikimedia_latest SELECT * FROM edits;
