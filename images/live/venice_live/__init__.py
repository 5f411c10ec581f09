"""Live state of Kafka topics in Redis (`live-sink`) and a server that streams it to browsers (`live-server`).

What is in Redis for a topic T, all of it written by the sink alone:

    live:T        hash: a record's key -> the newest value, as JSON; a tombstone removes the field
    stream:T:P    stream of partition P: entry OFFSET-1 has key (none for a record without), value (JSON), timestamp (ms), and prev,
                  the offset of the entry before it, so that a reader sees what trimming has taken from between two entries
    offsets:T     hash: id -> the topic's id in Kafka, P -> the last offset that is accounted for, P:tail -> the stream's last entry
"""
