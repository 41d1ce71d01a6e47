"""町のデータの書き出し: the town takes everything it owns along. The only place where the file can be opened."""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from apps.sdk.office import OfficeContext, Progress
from observability.problems import NotFound

routes = APIRouter()


@routes.get("/export")
async def export_page(office: OfficeContext) -> Response:
    return await office.page("desk/export.html", exported=await office.exits.latest(office.actor.tenant_id))


@routes.post("/export")
async def export(office: OfficeContext) -> Response:
    async def work(_progress: Progress) -> Mapping[str, object]:
        return {"exported": await office.exits.export(office.actor.tenant_id, by=office.by)}

    return await office.work("町のデータを書き出しています", work, then="desk/_export.html")


@routes.get("/export/{sha256}")
async def export_file(office: OfficeContext, sha256: str) -> Response:
    """The file that the page told of. That it was received is kept: the operator may erase the town only then."""
    exported = await office.exits.latest(office.actor.tenant_id)
    if office.receive_export is None or exported is None or exported.sha256 != sha256:
        raise NotFound("書き出し直されたか、まだ書き出していません。")
    parts = await office.receive_export()
    headers = {
        "content-disposition": f'attachment; filename="kumiai-{office.actor.tenant_code}.zip"',
        "content-length": str(exported.size_bytes),
    }
    return StreamingResponse(parts, media_type="application/zip", headers=headers)
