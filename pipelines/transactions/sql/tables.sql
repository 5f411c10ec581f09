-- Run by Venice in one transaction whenever this file has changed: so everything in it may be repeated.

-- One table per engine, called as its topic: the paid transactions of each three-second window.
CREATE TABLE IF NOT EXISTS transactions_aggregate_flink (
    window_start timestamptz PRIMARY KEY,
    window_end   timestamptz NOT NULL,
    total_amount double precision NOT NULL,
    transactions bigint NOT NULL,
    avg_amount   double precision NOT NULL
);

CREATE TABLE IF NOT EXISTS transactions_aggregate_ksql (LIKE transactions_aggregate_flink INCLUDING ALL);
CREATE TABLE IF NOT EXISTS transactions_aggregate_spark (LIKE transactions_aggregate_flink INCLUDING ALL);
CREATE TABLE IF NOT EXISTS transactions_aggregate_pinot (LIKE transactions_aggregate_flink INCLUDING ALL);
