//! Where bytes come from and go to: descriptors that clients sent, or paths for those who have the daemon's rights.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use damselfly_messages::name::Name;
use damselfly_transport::local::{
    Code, Descriptor, Descriptors, Failure, Kind, PeerCredentials, Target,
    proto::{self, export_task_request::Target as Named, import_task_request::Source},
};
use rustix::fs::OFlags;

use crate::{blocking::blocking, export::ExportRequest, failure::OrFailure as _, import::ImportRequest, limiter::Rate};

/// Checks an import and opens its source.
pub(super) async fn import_request(
    descriptors: &Descriptors,
    caller: PeerCredentials,
    request: proto::ImportTaskRequest,
) -> Result<ImportRequest, Failure> {
    if request.replicas > 1 {
        return Err(Failure::new(Code::Usage, "replicas: more than one is not built yet"));
    }
    let source = match request.source {
        Some(Source::Descriptor(token)) => descriptors.take(caller.uid, &token)?.for_reading()?.into(),
        Some(Source::Path(path)) => {
            let path = allowed_path(caller, path)?;
            blocking(move || open_source(&path)).await?
        }
        None => return Err(Failure::new(Code::Usage, "the request has no source")),
    };
    Ok(ImportRequest {
        cid: (!request.cid.is_empty()).then_some(request.cid),
        tag: request.tag,
        source,
        ttl: (request.ttl_ms > 0).then(|| Duration::from_millis(request.ttl_ms)),
        pin: request.pin,
        rate: Rate::from_bytes(request.rate_limit),
    })
}

/// Checks an export and opens its target.
pub(super) async fn export_request(
    descriptors: &Descriptors,
    caller: PeerCredentials,
    request: proto::ExportTaskRequest,
) -> Result<(ExportRequest, Option<Target>), Failure> {
    let name = Name::parse(&request.cid, &request.tag).or_failure()?;
    let (target, kind, output) = match request.target {
        Some(Named::Descriptor(token)) => {
            let descriptor: Descriptor = descriptors.take(caller.uid, &token)?;
            let kind = descriptor.kind;
            (File::from(descriptor.for_writing()?), kind, None)
        }
        Some(Named::Path(path)) => {
            let path = allowed_path(caller, path)?;
            let (file, output) = blocking(move || create_output(&path, request.force)).await?;
            (file, Kind::File, Some(output))
        }
        None => return Err(Failure::new(Code::Usage, "the request has no target")),
    };
    let rate = Rate::from_bytes(request.rate_limit);
    Ok((ExportRequest { name, local: request.local, target, kind, rate }, output))
}

/// On the socket nobody gets the daemon's rights: only who has them already may name paths.
fn allowed_path(caller: PeerCredentials, path: String) -> Result<PathBuf, Failure> {
    if !caller.may_name_paths() {
        return Err(Failure::new(Code::Permission, "only the daemon's own user and root may name paths")
            .with_hint("open the file and send its descriptor, as dfcache does"));
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Failure::new(Code::Usage, "the path is not absolute"));
    }
    Ok(path)
}

fn open_source(path: &Path) -> Result<File, Failure> {
    let failed = |error: &std::io::Error| Failure::io(format_args!("cannot open {}", path.display()), error);
    // Opening a fifo or a device must not wait or do anything.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(Failure::new(Code::Failed, format!("{} is a directory", path.display()))
            .with_hint("pack it first, for instance with tar"));
    }
    if !metadata.is_file() {
        return Err(Failure::new(Code::Failed, format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

fn create_output(path: &Path, force: bool) -> Result<(File, Target), Failure> {
    let target = Target::prepare(path, force)?;
    let file = target.file().try_clone_to_owned();
    let file = file.map_err(|error| Failure::io(format_args!("cannot create {}", path.display()), &error))?;
    Ok((file.into(), target))
}
