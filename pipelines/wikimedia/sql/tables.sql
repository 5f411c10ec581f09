-- Run by Venice in one transaction whenever this file has changed: so everything in it may be repeated.

CREATE TABLE IF NOT EXISTS wikimedia_edits_per_minute (
    wiki         text NOT NULL,
    window_start timestamptz NOT NULL,
    window_end   timestamptz NOT NULL,
    edits        bigint NOT NULL,
    new_pages    bigint NOT NULL,
    bot_edits    bigint NOT NULL,
    PRIMARY KEY (wiki, window_start)
);
