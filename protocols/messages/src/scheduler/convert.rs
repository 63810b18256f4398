//! Scheduler messages to and from the wire.

use super::*;
use crate::trace::trace_bytes;
use pb::{scheduler_request::Body as PbRequest, scheduler_response::Body as PbResponse};

impl Wire for Request {
    fn to_bytes(&self) -> Vec<u8> {
        let body = Some(PbRequest::from(&self.body));
        let trace = trace_bytes(self.trace);
        pb::SchedulerRequest { epoch: self.epoch, stand_in: self.stand_in, body, trace }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let request: pb::SchedulerRequest = pb::decode("scheduler request", bytes)?;
        let body = required("scheduler request", request.body)?.try_into()?;
        let trace = TraceContext::from_bytes(&request.trace);
        Ok(Self { epoch: request.epoch, stand_in: request.stand_in, body, trace })
    }
}

impl From<&RequestBody> for PbRequest {
    fn from(body: &RequestBody) -> Self {
        match body {
            RequestBody::StatTask(name) => Self::StatTask(name.into()),
            RequestBody::AnnounceTask(announce) => Self::AnnounceTask(announce.into()),
            RequestBody::RegisterPeerTask(register) => Self::RegisterPeerTask(pb::RegisterPeerTask {
                name: Some((&register.name).into()),
                exclude: register.exclude.iter().map(|peer| peer.to_bytes()).collect(),
            }),
            RequestBody::ReportPieceResult(report) => Self::ReportPieceResult(report.into()),
            RequestBody::ReportPeerResult(report) => Self::ReportPeerResult(pb::ReportPeerResult {
                task: report.task.digest().to_vec(),
                content: report.content.digest().to_vec(),
                result: report.result as u32,
            }),
            RequestBody::LeaveTask(task) => Self::LeaveTask(task.digest().to_vec()),
            RequestBody::DeleteTask(delete) => Self::DeleteTask(pb::DeleteTask {
                task: delete.task.digest().to_vec(),
                asked: delete.asked.map(|at| at.0),
                name: delete.name.as_ref().map(Into::into),
                uid: delete.uid,
            }),
            RequestBody::AnnounceHost(host) => Self::AnnounceHost(host.as_ref().into()),
        }
    }
}

impl TryFrom<PbRequest> for RequestBody {
    type Error = Invalid;

    fn try_from(body: PbRequest) -> Result<Self, Invalid> {
        Ok(match body {
            PbRequest::StatTask(name) => Self::StatTask(name.try_into()?),
            PbRequest::AnnounceTask(announce) => Self::AnnounceTask(announce.try_into()?),
            PbRequest::RegisterPeerTask(register) => Self::RegisterPeerTask(RegisterPeerTask {
                name: required("name", register.name)?.try_into()?,
                exclude: at_most("excluded hosts", register.exclude, EXCLUDED_MAX)?
                    .iter()
                    .map(|bytes| pb::peer_id(bytes))
                    .collect::<Result<_, _>>()?,
            }),
            PbRequest::ReportPieceResult(report) => Self::ReportPieceResult(report.try_into()?),
            PbRequest::ReportPeerResult(report) => Self::ReportPeerResult(ReportPeerResult {
                task: TaskId::from_bytes(&report.task)?,
                content: ContentId::from_bytes(&report.content)?,
                result: match report.result {
                    0 => PeerResult::Done,
                    1 => PeerResult::Failed,
                    2 => PeerResult::FalseCandidate,
                    other => return Err(Invalid::new("peer result", other.to_string())),
                },
            }),
            PbRequest::LeaveTask(task) => Self::LeaveTask(TaskId::from_bytes(&task)?),
            PbRequest::DeleteTask(delete) => Self::DeleteTask(delete.try_into()?),
            PbRequest::AnnounceHost(host) => Self::AnnounceHost(Box::new(host.try_into()?)),
        })
    }
}

impl TryFrom<pb::DeleteTask> for DeleteTask {
    type Error = Invalid;

    fn try_from(delete: pb::DeleteTask) -> Result<Self, Invalid> {
        let task = TaskId::from_bytes(&delete.task)?;
        let name = delete.name.map(Name::try_from).transpose()?;
        if name.as_ref().is_some_and(|name| name.task_id() != task) {
            return Err(Invalid::new("name", "it is another task's"));
        }
        Ok(Self { task, asked: delete.asked.map(UnixMillis), name, uid: delete.uid })
    }
}

impl From<&AnnounceTask> for pb::AnnounceTask {
    fn from(announce: &AnnounceTask) -> Self {
        let bucket = announce.bucket.map(|part| pb::BucketPart {
            bucket: part.bucket.into(),
            first: part.first,
            last: part.last,
        });
        Self { records: announce.records.iter().map(pb::Record::from).collect(), bucket }
    }
}

impl TryFrom<pb::AnnounceTask> for AnnounceTask {
    type Error = Invalid;

    fn try_from(announce: pb::AnnounceTask) -> Result<Self, Invalid> {
        let part = |part: pb::BucketPart| {
            let bucket = part.bucket.try_into().map_err(|_| Invalid::new("bucket", part.bucket.to_string()))?;
            Ok(BucketPart { bucket, first: part.first, last: part.last })
        };
        Ok(Self {
            records: each("records", announce.records, RECORDS_MAX)?,
            bucket: announce.bucket.map(part).transpose()?,
        })
    }
}

impl From<&Record> for pb::Record {
    fn from(record: &Record) -> Self {
        let record = match record {
            Record::Held(announcement) => pb::record::Record::Held(pb::Announcement {
                name: Some((&announcement.name).into()),
                binding: Some((&announcement.binding).into()),
                partial_pieces: match announcement.holding {
                    Holding::Complete => None,
                    Holding::Partial { pieces } => Some(pieces),
                },
            }),
            Record::Deleted(tombstone) => pb::record::Record::Deleted(tombstone.into()),
        };
        Self { record: Some(record) }
    }
}

impl TryFrom<pb::Record> for Record {
    type Error = Invalid;

    fn try_from(record: pb::Record) -> Result<Self, Invalid> {
        Ok(match required("record", record.record)? {
            pb::record::Record::Held(held) => Self::Held(Announcement {
                name: required("name", held.name)?.try_into()?,
                binding: required("binding", held.binding)?.try_into()?,
                holding: held.partial_pieces.map_or(Holding::Complete, |pieces| Holding::Partial { pieces }),
            }),
            pb::record::Record::Deleted(tombstone) => Self::Deleted(tombstone.try_into()?),
        })
    }
}

impl From<&ReportPieceResult> for pb::ReportPieceResult {
    fn from(report: &ReportPieceResult) -> Self {
        let result = |result: &ParentResult| pb::ParentResult {
            parent: result.parent.to_bytes(),
            pieces: result.pieces,
            bytes: result.bytes,
            busy_millis: result.busy_millis,
            fault: match result.fault {
                None => 0,
                Some(ParentFault::Unreachable) => 1,
                Some(ParentFault::NotHeld) => 2,
                Some(ParentFault::Lied) => 3,
            },
        };
        Self {
            task: report.task.digest().to_vec(),
            content: report.content.digest().to_vec(),
            pieces_held: report.pieces_held,
            results: report.results.iter().map(result).collect(),
        }
    }
}

impl TryFrom<pb::ReportPieceResult> for ReportPieceResult {
    type Error = Invalid;

    fn try_from(report: pb::ReportPieceResult) -> Result<Self, Invalid> {
        Ok(Self {
            task: TaskId::from_bytes(&report.task)?,
            content: ContentId::from_bytes(&report.content)?,
            pieces_held: report.pieces_held,
            results: each("parent results", report.results, PARENTS_MAX)?,
        })
    }
}

impl TryFrom<pb::ParentResult> for ParentResult {
    type Error = Invalid;

    fn try_from(result: pb::ParentResult) -> Result<Self, Invalid> {
        Ok(Self {
            parent: pb::peer_id(&result.parent)?,
            pieces: result.pieces,
            bytes: result.bytes,
            busy_millis: result.busy_millis,
            fault: match result.fault {
                0 => None,
                1 => Some(ParentFault::Unreachable),
                2 => Some(ParentFault::NotHeld),
                3 => Some(ParentFault::Lied),
                other => return Err(Invalid::new("parent fault", other.to_string())),
            },
        })
    }
}

impl From<&AnnounceHost> for pb::AnnounceHost {
    fn from(host: &AnnounceHost) -> Self {
        Self {
            addresses: host.addresses.iter().map(Multiaddr::to_vec).collect(),
            seed: host.seed,
            tags: host.tags.clone().into_iter().collect(),
            buckets: host.buckets.as_ref().map_or_else(Vec::new, |digests| digests.as_array().to_vec()),
            version: host.version.clone(),
            report: Some((&host.report).into()),
        }
    }
}

impl TryFrom<pb::AnnounceHost> for AnnounceHost {
    type Error = Invalid;

    fn try_from(host: pb::AnnounceHost) -> Result<Self, Invalid> {
        let too_long = |text: &String| text.len() > TAG_TEXT_MAX;
        if host.tags.len() > TAGS_MAX || host.tags.iter().any(|(key, value)| too_long(key) || too_long(value)) {
            return Err(Invalid::new("host tags", "too many or too long"));
        }
        if too_long(&host.version) {
            return Err(Invalid::new("version", "it is too long"));
        }
        let buckets = match host.buckets.len() {
            0 => None,
            _ => {
                let digests: [u64; BUCKETS] =
                    host.buckets.try_into().map_err(|_| Invalid::new("bucket digests", "there are not 256"))?;
                Some(digests.into())
            }
        };
        Ok(Self {
            addresses: pb::addresses(host.addresses)?,
            seed: host.seed,
            tags: host.tags.into_iter().collect(),
            buckets,
            version: host.version,
            report: host.report.unwrap_or_default().into(),
        })
    }
}

impl Wire for Response {
    fn to_bytes(&self) -> Vec<u8> {
        pb::SchedulerResponse { epoch: self.epoch, body: Some((&self.body).into()) }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let response: pb::SchedulerResponse = pb::decode("scheduler response", bytes)?;
        let body = required("scheduler response", response.body)?.try_into()?;
        Ok(Self { epoch: response.epoch, body })
    }
}

impl From<&ResponseBody> for PbResponse {
    fn from(body: &ResponseBody) -> Self {
        match body {
            ResponseBody::Stat(answer) => Self::Stat(answer.into()),
            ResponseBody::Announced(outcomes) => {
                Self::Announced(pb::AnnounceAnswer { outcomes: outcomes.iter().map(pb::Outcome::from).collect() })
            }
            ResponseBody::Registered(answer) => Self::Registered(answer.into()),
            ResponseBody::Noted => Self::Noted(pb::Nothing {}),
            ResponseBody::Deleted(answer) => Self::Deleted(pb::DeleteAnswer {
                tombstone: answer.tombstone.as_ref().map(pb::Tombstone::from),
                dropped: answer.dropped,
                unreachable: answer.unreachable,
                warm: answer.warm,
            }),
            ResponseBody::Host(answer) => {
                let time = answer.time.map(|time| time.0);
                Self::Host(pb::HostAnswer { mismatched_buckets: answer.mismatched.clone(), warm: answer.warm, time })
            }
            ResponseBody::NotOwner(configuration) => {
                Self::NotOwner(pb::NotOwner { configuration: configuration.clone().unwrap_or_default() })
            }
        }
    }
}

impl TryFrom<PbResponse> for ResponseBody {
    type Error = Invalid;

    fn try_from(body: PbResponse) -> Result<Self, Invalid> {
        Ok(match body {
            PbResponse::Stat(answer) => Self::Stat(answer.try_into()?),
            PbResponse::Announced(answer) => Self::Announced(each("outcomes", answer.outcomes, RECORDS_MAX)?),
            PbResponse::Registered(answer) => Self::Registered(answer.try_into()?),
            PbResponse::Noted(_) => Self::Noted,
            PbResponse::Deleted(answer) => Self::Deleted(DeleteAnswer {
                tombstone: answer.tombstone.map(Tombstone::try_from).transpose()?,
                dropped: answer.dropped,
                unreachable: answer.unreachable,
                warm: answer.warm,
            }),
            PbResponse::Host(answer) => Self::Host(HostAnswer {
                mismatched: at_most("mismatched buckets", answer.mismatched_buckets, BUCKETS)?,
                warm: answer.warm,
                time: answer.time.map(UnixMillis),
            }),
            PbResponse::NotOwner(answer) => {
                Self::NotOwner(Some(answer.configuration).filter(|signed| !signed.is_empty()))
            }
        })
    }
}

impl From<&Missing> for pb::Missing {
    fn from(missing: &Missing) -> Self {
        Self { warm: missing.warm, deleted: missing.deleted.as_ref().map(pb::Tombstone::from) }
    }
}

impl TryFrom<pb::Missing> for Missing {
    type Error = Invalid;

    fn try_from(missing: pb::Missing) -> Result<Self, Invalid> {
        Ok(Self { warm: missing.warm, deleted: missing.deleted.map(Tombstone::try_from).transpose()? })
    }
}

impl From<&StatAnswer> for pb::StatAnswer {
    fn from(answer: &StatAnswer) -> Self {
        match answer {
            StatAnswer::Found { candidates, holders, available } => Self {
                candidates: candidates.iter().map(pb::Binding::from).collect(),
                holders: *holders,
                available: *available,
                missing: None,
            },
            StatAnswer::Missing(missing) => Self { missing: Some(missing.into()), ..Self::default() },
        }
    }
}

impl TryFrom<pb::StatAnswer> for StatAnswer {
    type Error = Invalid;

    fn try_from(answer: pb::StatAnswer) -> Result<Self, Invalid> {
        if let Some(missing) = answer.missing {
            return Ok(Self::Missing(missing.try_into()?));
        }
        let candidates: Vec<Binding> = each("candidates", answer.candidates, CANDIDATES_MAX)?;
        if candidates.is_empty() {
            return Err(Invalid::new("stat answer", "found, but nothing"));
        }
        Ok(Self::Found { candidates, holders: answer.holders, available: answer.available })
    }
}

impl From<&Outcome> for pb::Outcome {
    fn from(outcome: &Outcome) -> Self {
        use pb::outcome::Outcome as Pb;
        let outcome = match outcome {
            Outcome::Accepted(binding) => Pb::Accepted(binding.into()),
            Outcome::Conflict(binding) => Pb::Conflict(binding.into()),
            Outcome::Buried(tombstone) => Pb::Buried(tombstone.into()),
            Outcome::Noted => Pb::Noted(pb::Nothing {}),
            Outcome::Cold(retry_millis) => Pb::ColdRetryMillis(*retry_millis),
            Outcome::Refused(reason) => Pb::Refused(reason.clone()),
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<pb::Outcome> for Outcome {
    type Error = Invalid;

    fn try_from(outcome: pb::Outcome) -> Result<Self, Invalid> {
        use pb::outcome::Outcome as Pb;
        Ok(match required("outcome", outcome.outcome)? {
            Pb::Accepted(binding) => Self::Accepted(binding.try_into()?),
            Pb::Conflict(binding) => Self::Conflict(binding.try_into()?),
            Pb::Buried(tombstone) => Self::Buried(tombstone.try_into()?),
            Pb::Noted(_) => Self::Noted,
            Pb::ColdRetryMillis(retry_millis) => Self::Cold(retry_millis),
            Pb::Refused(reason) => Self::Refused(reason),
        })
    }
}

impl From<&RegisterAnswer> for pb::RegisterAnswer {
    fn from(answer: &RegisterAnswer) -> Self {
        match answer {
            RegisterAnswer::Found(candidates) => {
                Self { candidates: candidates.iter().map(pb::Candidate::from).collect(), missing: None }
            }
            RegisterAnswer::Missing(missing) => Self { candidates: Vec::new(), missing: Some(missing.into()) },
        }
    }
}

impl TryFrom<pb::RegisterAnswer> for RegisterAnswer {
    type Error = Invalid;

    fn try_from(answer: pb::RegisterAnswer) -> Result<Self, Invalid> {
        match answer.missing {
            Some(missing) => Ok(Self::Missing(missing.try_into()?)),
            None => Ok(Self::Found(each("candidates", answer.candidates, CANDIDATES_MAX)?)),
        }
    }
}

impl From<&Candidate> for pb::Candidate {
    fn from(candidate: &Candidate) -> Self {
        Self {
            binding: Some((&candidate.binding).into()),
            parents: candidate.parents.iter().map(pb::Parent::from).collect(),
        }
    }
}

impl TryFrom<pb::Candidate> for Candidate {
    type Error = Invalid;

    fn try_from(candidate: pb::Candidate) -> Result<Self, Invalid> {
        Ok(Self {
            binding: required("binding", candidate.binding)?.try_into()?,
            parents: each("parents", candidate.parents, PARENTS_MAX)?,
        })
    }
}

impl From<&Parent> for pb::Parent {
    fn from(parent: &Parent) -> Self {
        let addresses = parent.addresses.iter().map(Multiaddr::to_vec).collect();
        Self {
            peer: Some(pb::Peer { peer: parent.peer.to_bytes(), addresses }),
            complete: parent.complete,
            seed: parent.seed,
        }
    }
}

impl TryFrom<pb::Parent> for Parent {
    type Error = Invalid;

    fn try_from(parent: pb::Parent) -> Result<Self, Invalid> {
        let peer = required("parent", parent.peer)?;
        Ok(Self {
            peer: pb::peer_id(&peer.peer)?,
            addresses: pb::addresses(peer.addresses)?,
            complete: parent.complete,
            seed: parent.seed,
        })
    }
}
