"""Variables of clouds become settings; given settings win; contradictions are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from service.clouds.deployment import CloudSettings, settings_for_cloud
from service.clouds.registry import CLOUDS
from service.clouds.sagemaker import read_deployment
from service.settings import Settings, SettingsError, load_settings

VERTEX = {"AIP_HTTP_PORT": "9090", "AIP_HEALTH_ROUTE": "/h", "AIP_PREDICT_ROUTE": "/p"}


@pytest.fixture(autouse=True)
def _no_given_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the variable by which tests start no gRPC."""
    monkeypatch.delenv("LITE_DETR_GRPC_PORT")


def found(variables: dict[str, str], **given: Any) -> CloudSettings:
    return settings_for_cloud(load_settings(**given), given, variables)


def test_the_setting_takes_every_cloud() -> None:
    choices = get_args(Settings.model_fields["cloud"].annotation)
    assert set(choices) == {"auto", "none", *CLOUDS}


def test_without_variables_there_is_no_cloud() -> None:
    for variables in ({}, {"PORT": "", "AIP_HTTP_PORT": " "}, {"K_SERVICE": "detector"}):
        cloud = found(variables)
        assert (cloud.deployment, cloud.settings) == (None, load_settings())


@pytest.mark.parametrize(
    ("variables", "host", "http_port", "grpc_port", "drain_seconds"),
    [
        ({"PORT": "9000"}, "127.0.0.1", 9000, 8001, 60),
        ({"PORT": "9000", "K_SERVICE": "detector"}, "0.0.0.0", 9000, -1, 9),
        ({"SAGEMAKER_BIND_TO_PORT": "9001"}, "0.0.0.0", 9001, -1, 28),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9000-9999"}, "0.0.0.0", 8080, -1, 28),
        (VERTEX, "0.0.0.0", 9090, -1, 60),
        (VERTEX | {"PORT": "7000"}, "0.0.0.0", 9090, -1, 60),
        ({"PORT": "8001"}, "127.0.0.1", 8001, -1, 60),
    ],
)
def test_variables_become_settings(
    variables: dict[str, str], host: str, http_port: int, grpc_port: int, drain_seconds: float
) -> None:
    cloud = found(variables)
    settings = cloud.settings
    assert (settings.host, settings.http_port, settings.grpc_port) == (host, http_port, grpc_port)
    assert settings.drain_timeout_seconds == drain_seconds
    assert not cloud.warnings


@pytest.mark.parametrize(
    ("cloud", "http_port"), [("sagemaker", 8080), ("vertex", 8080), ("cloud-run", 8080)]
)
def test_the_setting_chooses_a_cloud_without_variables(cloud: str, http_port: int) -> None:
    chosen = found({}, cloud=cloud)
    assert (chosen.settings.host, chosen.settings.http_port) == ("0.0.0.0", http_port)


def test_a_port_of_make_changes_nothing_but_the_port() -> None:
    cloud = found({"PORT": "9000"}, http_port="9000")  # make serve PORT=9000
    assert cloud.settings == load_settings(http_port="9000")
    assert not cloud.notes + cloud.warnings


def test_none_ignores_all_variables() -> None:
    cloud = found(VERTEX | {"PORT": "x", "SAGEMAKER_BIND_TO_PORT": "y"}, cloud="none")
    assert (cloud.deployment, cloud.settings.http_port) == (None, 8000)


def test_given_settings_win_and_contradictions_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"http_port": "9000", "host": "127.0.0.1", "grpc_port": "9001"}
    cloud = found({"SAGEMAKER_BIND_TO_PORT": "8080"}, **given)
    assert (cloud.settings.http_port, cloud.settings.host) == (9000, "127.0.0.1")
    assert cloud.settings.grpc_port == 9001
    assert [line.split(" is not used")[0] for line in cloud.warnings] == [
        "SAGEMAKER_BIND_TO_PORT='8080'",
        "SageMaker",
    ]
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", "9005")
    (line,) = found({"PORT": "8080"}).warnings
    assert line == "PORT='8080' is not used: http_port (LITE_DETR_HTTP_PORT) is '9005'"
    assert not found({"PORT": "9005"}).warnings


@pytest.mark.parametrize("port", ["abc", "0", "-1", "65536", "8080.0", "tcp://10.0.0.1:80", "٣٣"])
@pytest.mark.parametrize("variable", ["PORT", "SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT"])
def test_a_value_that_is_no_port_is_named(variable: str, port: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}='.*' is not a port"):
        found({variable: port})
    (line,) = found({variable: port}, http_port=9000).warnings
    assert f"{variable}={port!r} is not used" in line


def test_a_port_that_is_taken_by_a_given_one_names_the_variable() -> None:
    with pytest.raises(SettingsError, match=r"grpc_port must differ.*PORT='9001' of Cloud Run"):
        found({"PORT": "9001"}, grpc_port=9001)


def test_variables_of_two_clouds_need_a_choice() -> None:
    both = VERTEX | {"SAGEMAKER_BIND_TO_PORT": "9001"}
    with pytest.raises(SettingsError, match=r"several clouds.*LITE_DETR_CLOUD=sagemaker\|vertex"):
        found(both)
    assert found(both, cloud="vertex").settings.http_port == 9090


def test_access_that_a_cloud_cannot_use_is_reported(tmp_path: Path) -> None:
    cloud = found(VERTEX, api_keys_file=tmp_path / "keys")
    assert "cannot send API keys" in cloud.warnings[0]
    tls = {"tls_certificate_file": tmp_path / "cert", "tls_key_file": tmp_path / "key"}
    assert "plain HTTP" in found({"SAGEMAKER_BIND_TO_PORT": "1"}, **tls).warnings[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [("9000-9999", "grpc_port=8001 is outside"), ("9000", "not FIRST-LAST"), ("8000-8001", "")],
)
def test_a_second_port_is_checked_against_sagemakers_range(text: str, words: str) -> None:
    warnings = found({"SAGEMAKER_SAFE_PORT_RANGE": text}, grpc_port=8001).warnings
    assert [words in line for line in warnings] == [True] * bool(words)


@pytest.mark.parametrize("route", ["health", "/{x}", "/a b", "/a?b", "/a%20b", "/ä"])
@pytest.mark.parametrize("variable", ["AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"])
def test_a_route_that_is_no_plain_path_is_named(variable: str, route: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        found(VERTEX | {variable: route})


class TestModel:
    """The model in the folder of a cloud."""

    @staticmethod
    def _sagemaker(folder: Path, **given: Any) -> object:
        deployment = read_deployment({}, load_settings(cloud="sagemaker", **given), folder)
        return {each.field: each.value for each in deployment.settings}.get("model")

    def test_the_only_weights_file_is_found_at_any_depth(self, tmp_path: Path) -> None:
        assert self._sagemaker(tmp_path / "absent") is None
        assert self._sagemaker(tmp_path) is None
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("x")
        weights = tmp_path / "a" / "b" / "mine.safetensors"
        weights.touch()
        assert self._sagemaker(tmp_path) == str(weights)
        assert self._sagemaker(tmp_path, model="default") is None
        azure = found({"AZUREML_MODEL_DIR": str(tmp_path)}, cloud="azure")
        vertex = found({"AIP_STORAGE_URI": f"file://{tmp_path}"})
        assert azure.settings.model == vertex.settings.model == str(weights)

    def test_of_several_the_one_with_the_usual_name_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").touch()
        (tmp_path / "b.safetensors").touch()
        with pytest.raises(SettingsError, match=r"several weights files: a\.safetensors, b"):
            self._sagemaker(tmp_path)
        (tmp_path / "model.safetensors").touch()
        assert self._sagemaker(tmp_path) == str(tmp_path / "model.safetensors")

    def test_a_folder_that_cannot_be_read_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)
        with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
            self._sagemaker(tmp_path)

    def test_a_folder_without_weights_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "model.pth").touch()
        with pytest.raises(SettingsError, match=r"no \*.safetensors file, but model.pth"):
            self._sagemaker(tmp_path)
        with pytest.raises(SettingsError, match="AZUREML_MODEL_DIR='/no-such' does not exist"):
            found({"AZUREML_MODEL_DIR": "/no-such"}, cloud="azure")
        with pytest.raises(SettingsError, match="does not exist"):
            found({"AZUREML_MODEL_DIR": "x" * 300}, cloud="azure")
        with pytest.raises(SettingsError, match="Invalid IPv6 URL"):
            found(VERTEX | {"AIP_STORAGE_URI": "http://[::1"})

    def test_a_bucket_is_an_error_unless_a_model_is_given(self, tmp_path: Path) -> None:
        variables = VERTEX | {"AIP_STORAGE_URI": "gs://bucket/model"}
        with pytest.raises(SettingsError, match="gs://bucket/model': the service does not downl"):
            found(variables)
        cloud = found(variables, model="default")
        assert cloud.settings.model == "default"
        assert "AIP_STORAGE_URI='gs://bucket/model' is not used" in cloud.warnings[0]
