"""What `venice destroy` leaves. Late by name: the tests after it begin with hosts without a deployment anyway."""

from tests.lab.support import HOSTS, on, starts, venice


def test_destroy_keeps_the_data_when_told_to_and_takes_it_otherwise(deployed):
    venice("destroy", "-i", "lab", "--yes", "--keep-data")
    assert not starts(deployed)
    for host in HOSTS:
        assert on(host, ["sudo", "test", "-e", "/srv/venice/kafka/meta.properties"]).returncode == 0
    venice("destroy", "-i", "lab", "--yes")
    for host in HOSTS:
        assert on(host, ["sudo", "test", "-e", "/srv/venice/kafka"]).returncode == 1
