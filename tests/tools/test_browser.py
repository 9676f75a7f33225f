from tools import browser


def test_what_is_missing_and_cannot_be_installed_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.missing() == ["Chromium", "chromedriver"]
    assert browser.main() == 0
    said = capsys.readouterr().err
    assert "THE PAGE IS NOT TESTED: this machine has no Chromium and no chromedriver." in said
    assert "apt-get install chromium chromium-driver" in said


def test_what_is_on_the_path_is_found(monkeypatch, tmp_path):
    for name in ("chromium", "chromedriver"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.missing() == []
    assert browser.found("driver") == str(tmp_path / "chromedriver")
