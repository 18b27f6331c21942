from __future__ import annotations

from lrms_vm.attach import outermost, sftp_argv


def test_a_share_inside_another_is_that_one_s_affair() -> None:
    assert outermost(("/a/b", "/a", "/a/bc/d", "/x", "/ab")) == ["/a", "/x", "/ab"]


def test_the_server_of_a_share_gets_nothing_of_the_host_to_write_but_the_share() -> None:
    argv = sftp_argv(
        "/data/run 7", server="/usr/lib/openssh/sftp-server", passwd="/p", exists=frozenset({"/lib@", "/lib64@"})
    )
    writable = [argv[i + 1 : i + 3] for i, word in enumerate(argv) if word == "--bind"]
    assert writable == [["/data/run 7", "/data/run 7"]]
    assert "--unshare-all" in argv
    assert "--die-with-parent" not in argv
    assert argv[argv.index("/lib64") - 2 : argv.index("/lib64") + 1] == ["--symlink", "usr/lib64", "/lib64"]


def test_a_host_without_merged_usr_lends_its_libraries_read_only() -> None:
    argv = sftp_argv("/w", server="/s", passwd="/p", exists=frozenset({"/lib", "/lib64"}))
    assert argv[argv.index("/lib64") - 1 : argv.index("/lib64") + 2] == ["--ro-bind", "/lib64", "/lib64"]
