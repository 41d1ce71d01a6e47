"""What only the gateway reads: keys and addresses of model providers, and its deadlines."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ProviderSettings(BaseSettings):
    """Provider keys under the names their own tools use; a provider without a key stays off."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: str = ""
    azure_openai_api_key: SecretStr = SecretStr("")
    azure_openai_endpoint: str = ""
    azure_tsuzumi_deployment: str = ""
    anthropic_api_key: SecretStr = SecretStr("")
    gemini_api_key: SecretStr = SecretStr("")
    plamo_api_key: SecretStr = SecretStr("")
    sakura_ai_api_key: SecretStr = SecretStr("")
    vllm_base_url: str = ""
    vllm_model: str = ""
    vllm_api_key: SecretStr = SecretStr("")
    # More deployments, or others under a shipped one's id, in the form of the shipped catalogue.
    kumiai_catalogue_file: Path | None = None
    kumiai_openai_compatible_base_url: str = ""
    kumiai_openai_compatible_api_key: SecretStr = SecretStr("")
    kumiai_openai_compatible_zone: Literal["", "onprem", "domestic", "overseas"] = ""
    # Whose company runs it (ISO 3166), which its place does not tell.
    kumiai_openai_compatible_country: str = Field(default="", pattern=r"^([A-Z]{2})?$")
    # One name or several with commas between them; the first answers to the staff's names.
    kumiai_openai_compatible_model: str = ""
    kumiai_openai_compatible_embedding_model: str = ""
    kumiai_openai_compatible_rerank_model: str = ""
    kumiai_openai_compatible_transcription_model: str = ""
    kumiai_openai_compatible_image_model: str = ""
    # Offers the gateway's own ear (make install-speech) as a model.
    kumiai_speech: Literal["", "on"] = ""
    kumiai_openai_compatible_max_output_tokens: int = 4_096
    kumiai_openai_compatible_concurrency: int | None = Field(default=None, ge=1)

    def keys(self) -> dict[str, str]:
        """The ones that are set, under their environment names in upper case."""
        values = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")
            if text:
                values[name.upper()] = text
        return values


class GatewaySettings(BaseSettings):
    """Deadlines in seconds; tests of faults scale them down."""

    model_config = SettingsConfigDict(env_prefix="KUMIAI_GATEWAY_", frozen=True, extra="ignore")

    connect_timeout_s: float = Field(default=3.0, gt=0)
    # The first word of a stream: four times what this deployment usually takes, between these two.
    first_byte_min_s: float = Field(default=10.0, gt=0)
    first_byte_timeout_s: float = Field(default=60.0, gt=0)
    between_chunks_timeout_s: float = Field(default=30.0, gt=0)
    total_timeout_s: float = Field(default=600.0, gt=0)
    # All of a request's body: 16 MB by a line of 1.1 Mbit/s.
    body_timeout_s: float = Field(default=120.0, gt=0)
    # How often a caller hears something in the middle of a stream, if only a comment.
    heartbeat_s: float = Field(default=15.0, gt=0)
    # So many failures among the last 20 calls of a deployment, and it is left alone for so long at first.
    breaker_failures: int = Field(default=10, ge=1)
    breaker_open_s: float = Field(default=5.0, gt=0)
    # Attempts beyond the first, as a share of all calls.
    retry_share: float = Field(default=0.1, ge=0, le=1)
    # After SIGTERM: not ready, but still open for those who have not heard of it; then calls under way have the rest.
    unready_s: float = Field(default=2.0, ge=0)
    drain_s: float = Field(default=25.0, ge=0)
    # Then callers are cut off; answers that they can take up again at another gateway are made for so long yet.
    linger_s: float = Field(default=30.0, ge=0)
    # An answer of another gateway that shows no sign of life for so long is lost.
    stream_lost_s: float = Field(default=10.0, gt=0)
    # What this process carries at once, of one town at most, how many may wait beyond it and for how long.
    max_calls: int = Field(default=1_000, ge=1)
    max_calls_per_town: int = Field(default=500, ge=1)
    max_waiting: int = Field(default=2_000, ge=0)
    queue_wait_s: float = Field(default=30.0, gt=0)
    # How long a call of a town that has used up its grant waits for a slice that the worker may borrow for it.
    grant_wait_s: float = Field(default=1.0, ge=0)
    # How long a call whose bytes do not fit waits until its tokens are counted; then its bytes stand.
    count_wait_s: float = Field(default=5.0, gt=0)
    # Answers whose callers left, at providers that bill them to the end: how many are read on, and for how long.
    max_pumps: int = Field(default=32, ge=0)
    pump_s: float = Field(default=120.0, gt=0)
    # For how long a hold stands without a sign of life of its gateway; then the worker moves it to suspense.
    hold_lease_s: float = Field(default=120.0, ge=1)
    # Whether letters in pictures are read before they leave, where the reader is installed.
    pictures: Literal["auto", "off"] = "auto"
    # Whether recordings are listened to before they leave, where that is installed; else they are only measured.
    speech: Literal["auto", "off"] = "auto"
    demo_delay_s: float = Field(default=0.03, ge=0)
    # The way out: a CONNECT proxy, an internal CA, a client certificate.
    egress_proxy: str = ""
    egress_ca_file: Path | None = None
    egress_client_cert_file: Path | None = None
    egress_client_key_file: Path | None = None

    @property
    def body_s(self) -> float:
        """A body has no more time than its whole call."""
        return min(self.body_timeout_s, self.total_timeout_s)
