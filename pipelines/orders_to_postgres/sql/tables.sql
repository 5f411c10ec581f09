-- Run by Venice in one transaction whenever this file has changed: so everything in it may be repeated.

-- The newest state of each order. No check that a validated order could fail: it would stop the sink.
CREATE TABLE IF NOT EXISTS orders (
    order_id    text PRIMARY KEY,
    customer_id text NOT NULL,
    sku         text NOT NULL,
    quantity    integer NOT NULL,
    amount      numeric(12, 2) NOT NULL,
    currency    text NOT NULL,
    status      text NOT NULL,
    placed_at   timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS orders_status ON orders (status, updated_at);

-- A record that was repaired and sent again comes late: it must not undo what happened to its order since.
CREATE OR REPLACE FUNCTION orders_keep_newest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.updated_at < OLD.updated_at THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER keep_newest BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION orders_keep_newest();

CREATE OR REPLACE VIEW orders_by_status AS
SELECT status, currency, count(*) AS orders, sum(amount) AS amount
FROM orders
GROUP BY status, currency;

-- Every change of every order. Rows are only ever inserted; where a row's record lies in Kafka is its key.
CREATE TABLE IF NOT EXISTS orders_audit (
    order_id            text NOT NULL,
    customer_id         text NOT NULL,
    sku                 text NOT NULL,
    quantity            integer NOT NULL,
    amount              numeric(12, 2) NOT NULL,
    currency            text NOT NULL,
    status              text NOT NULL,
    placed_at           timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    written_at          timestamptz NOT NULL DEFAULT now(),
    __connect_topic     text,
    __connect_partition integer,
    __connect_offset    bigint,
    PRIMARY KEY (__connect_topic, __connect_partition, __connect_offset)
);

CREATE INDEX IF NOT EXISTS orders_audit_order ON orders_audit (order_id, updated_at);

-- Connect delivers some records again after a crash. A row that is there already is passed over; else the key would stop the sink.
CREATE OR REPLACE FUNCTION orders_audit_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM orders_audit
        WHERE __connect_topic = NEW.__connect_topic
            AND __connect_partition = NEW.__connect_partition
            AND __connect_offset = NEW.__connect_offset
    ) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER once BEFORE INSERT ON orders_audit FOR EACH ROW EXECUTE FUNCTION orders_audit_once();
