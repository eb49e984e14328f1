//! Where a section goes when it comes: onto the sections before it, or what is decided where it does not fit them (`chains`).

use kinesin_stream::geometry::Xy;
use kinesin_stream::map::{Affine, Map, SectionToVolume};
use ndarray::Array2;

use super::chains::{self, Candidate, Former, Turn};
use super::links::Links;
use super::look::Look;
use super::state::{DrawnAs, Pending};
use super::{Aligner, Alignment, Drawn, Drift, Reference, SectionView, Verdict, coarse, drift, extent, fine, keys};

/// The section that came.
pub(super) struct Own<'a> {
    view: &'a SectionView,
    /// Comparable image.
    image: Array2<u8>,
    low: Xy<f64>,
    high: Xy<f64>,
    look: Look,
}

impl<'a> Own<'a> {
    pub(super) fn new(view: &'a SectionView, image: Array2<u8>, reduction: u32) -> Self {
        let (low, high) = extent(view, reduction);
        Self { view, image, low, high, look: Look::of(&view.image) }
    }
}

/// A section laid onto others.
pub(super) struct Fit {
    placed: fine::Placed,
    links: Vec<Links>,
}

/// Two places of a section are the same within this, over most of it, px: twice what a consistent match may be off.
const SAME_PLACE_PX: f64 = 12.0;
/// Points along a side where they are compared.
const SAMPLES: usize = 8;

/// An accepted section, as image and as record.
pub(super) type Onto<'a> = (&'a Drawn, &'a DrawnAs);

impl Aligner {
    /// The section that defines the frame.
    pub(super) fn first(&mut self, view: &SectionView, image: Array2<u8>) -> Result<(), String> {
        let (low, high) = extent(view, self.config.reduction);
        self.state.drift = Some(Drift::none(view.serial.0, low, high, &self.config));
        let map = SectionToVolume(Map::IDENTITY);
        let drawn = Drawn::new(view.serial, image, view.origin, &map.0, self.config.reduction)?;
        self.add_drawn(drawn, DrawnAs { serial: view.serial, map: map.clone() });
        let record = chains::start(view.serial, &view.name, &map, Verdict::Reference);
        let look = Some(Look::of(&view.image));
        self.state.pending.push_back(Pending { look, ..Pending::new(record, [low, high]) });
        Ok(())
    }

    /// Any later one.
    pub(super) fn place(&mut self, view: &SectionView, image: Array2<u8>) -> Result<(), String> {
        let own = Own::new(view, image, self.config.reduction);
        let references = self.config.references as usize;
        let present: Vec<Onto<'_>> = self.drawn.iter().zip(&self.state.drawn).take(references).collect();
        let found = self.fit(&own, &present);
        let sharp = self.state.beside(&own.look).sharpness >= self.config.least_sharpness;
        let sure = |fit: &Fit| fit.placed.confidence >= self.config.reference_confidence;
        let unsure = match found {
            Ok(fit) if sure(&fit) && sharp => return self.agreed(own, fit),
            // It has its place, but the next ones are laid onto those before it.
            Ok(fit) if sure(&fit) => return self.refuse(own, Ok(fit)),
            unsure => unsure,
        };
        if let Some(former) = &self.state.former {
            let former: Vec<Onto<'_>> = self.former.iter().zip(&former.drawn).take(references).collect();
            if let Some(fit) = self.fit(&own, &former).ok().filter(sure) {
                return self.back(own, fit);
            }
        }
        if let (Some(image), Some(record)) = (&self.candidate, &self.state.candidate)
            && let Some(fit) = self.fit(&own, &[(image, &record.drawn)]).ok().filter(sure)
        {
            return self.follow(own, fit, unsure);
        }
        self.refuse(own, unsure)
    }

    /// Lays a section onto others, nearest first.
    pub(super) fn fit(&self, own: &Own<'_>, onto: &[Onto<'_>]) -> Result<Fit, String> {
        let fixed: Vec<&Reference> = onto.iter().map(|(d, _)| &d.as_reference).collect();
        let pose = self.pose(own, &fixed)?;
        let placed = fine::place(&own.image, own.view.origin, &fixed, pose, (own.low, own.high), &self.config)?;
        if placed.confidence < self.config.least_confidence {
            let (got, wanted) = (100.0 * placed.confidence, 100.0 * self.config.least_confidence);
            return Err(format!("matches are consistent on {got:.0} % of the common tissue, {wanted:.0} % are needed"));
        }
        let by_age = onto.iter().zip(&placed.tied).zip(0i32..);
        let links = by_age
            .filter(|(((_, d), _), _)| placed.used.contains(&d.serial))
            .map(|(((_, d), tied), age)| Links::new(d.serial, tied, self.config.older_weight.powi(age), &d.map.0))
            .collect();
        Ok(Fit { placed, links })
    }

    /// The coarse pose: first small angles against each reference, then all angles.
    fn pose(&self, own: &Own<'_>, references: &[&Reference]) -> Result<Affine, String> {
        let small = fine::thumbnail(&own.image, own.view.origin, &self.config, None);
        let mut reasons = vec![];
        for all_angles in [false, true] {
            if all_angles && !self.config.full_circle {
                break;
            }
            for r in references {
                let other = fine::thumbnail(&r.image, r.origin, &self.config, Some(small.scale));
                match coarse::find(&small, &other, &self.config, all_angles) {
                    Ok(pose) => return Ok(pose),
                    Err(reason) => reasons.push(format!("section {}: {reason}", r.serial.0)),
                }
            }
        }
        // The last were tried in every way: they tell most.
        reasons.reverse();
        Err(format!("no coarse pose; {}", reasons.join("; ")))
    }

    /// It fits those before it; what it says of the last of them is heard.
    fn agreed(&mut self, own: Own<'_>, fit: Fit) -> Result<(), String> {
        let Some(suspect) = self.state.suspect(own.view.serial, &fit.placed.map, &fit.links) else {
            return self.accept(own, fit, None);
        };
        let before: Vec<Onto<'_>> = self.drawn.iter().zip(&self.state.drawn).skip(1).collect();
        let anew = self.fit(&own, &before[..before.len().min(self.config.references as usize)]).ok();
        let told = anew.and_then(|anew| Some((suspect.confirmed(anew.placed.confidence)?, anew)));
        let Some((outvoted, anew)) = told else { return self.accept(own, fit, None) };
        self.drawn.pop_front();
        let last = self.state.drawn.pop_front().map(|d| d.serial);
        if let Some(p) = self.state.pending.iter_mut().find(|p| Some(p.record.serial) == last) {
            (p.record.kept_as_reference, p.record.outvoted, p.key) = (false, Some(outvoted), None);
        }
        self.accept(own, anew, None)
    }

    /// It is laid there, and later ones onto it.
    fn accept(&mut self, own: Own<'_>, fit: Fit, turn: Option<Turn>) -> Result<(), String> {
        let (view, extent) = (own.view, [own.low, own.high]);
        let record = self.record(&own, &fit, turn);
        let map = drift::on_axes(&fit.placed.map, &fit.placed.axes, |q| q);
        let drawn = Drawn::new(view.serial, own.image, view.origin, &map, self.config.reduction)?;
        let key = match (&self.key, &self.state.key) {
            (Some(plane), Some(key)) => {
                Some(keys::seen_again(key.serial, plane, &drawn.as_reference, &map, &self.config))
            }
            _ => None,
        };
        self.add_drawn(drawn, DrawnAs { serial: view.serial, map: SectionToVolume(map) });
        (self.candidate, self.state.candidate) = (None, None);
        let record = Alignment { kept_as_reference: true, ..record };
        let look = Some(own.look);
        self.state.pending.push_back(Pending { key, links: fit.links, turn, look, ..Pending::new(record, extent) });
        Ok(())
    }

    pub(super) fn record(&self, own: &Own<'_>, fit: &Fit, turn: Option<Turn>) -> Alignment {
        let placed = &fit.placed;
        let nearest = placed.used[0];
        let next_to = nearest.0 + 1 == own.view.serial.0;
        let verdict = if next_to { Verdict::Aligned } else { Verdict::Bridged { from: nearest } };
        Alignment {
            map: Some(SectionToVolume(drift::on_axes(&placed.map, &placed.axes, |q| q))),
            residual_px: Some(placed.residual),
            confidence: (placed.confidence * 1000.0).round() / 1000.0,
            references: placed.used.clone(),
            stiffness: placed.stiffness.is_finite().then_some(placed.stiffness),
            in_pieces: placed.in_pieces,
            broken_before: turn.is_some(),
            ..Alignment::unplaced(own.view.serial, &own.view.name, verdict)
        }
    }

    /// It fits the chain before the last break, which goes on with it.
    fn back(&mut self, own: Own<'_>, fit: Fit) -> Result<(), String> {
        let Some(mut former) = self.state.former.take() else { return Err("there is no chain before".into()) };
        let mut images = std::mem::take(&mut self.former);
        std::mem::swap(&mut images, &mut self.drawn);
        let now = std::mem::replace(&mut self.state.drawn, former.drawn.into());
        if self.state.retract() {
            return self.accept(own, fit, None);
        }
        images.truncate(self.config.references as usize);
        self.former = images;
        former.drawn = now.into_iter().take(self.config.references as usize).collect();
        self.state.former = Some(former);
        self.accept(own, fit, Some(Turn::Back))
    }

    /// It fits the section before it that was not accepted: the two go on together.
    fn follow(&mut self, own: Own<'_>, fit: Fit, unsure: Result<Fit, String>) -> Result<(), String> {
        let (Some(image), Some(Candidate { drawn, weak })) = (self.candidate.take(), self.state.candidate.take())
        else {
            return Err("there is no section before it".into());
        };
        let at = self.state.pending.iter().position(|p| p.record.serial == drawn.serial);
        if weak && at.is_none_or(|at| self.confirms(at, &own, &fit, &unsure)) {
            if let Some(at) = at {
                self.state.pending[at].record.kept_as_reference = true;
            }
            self.add_drawn(image, drawn);
            return self.accept(own, fit, None);
        }
        if let Some(at) = at {
            let (image, drawn, fit) = if weak { self.lifted(at, image, &own)? } else { (image, drawn, fit) };
            let (refused, extent) = (self.state.pending[at].record.clone(), self.state.pending[at].extent);
            let record = self.begin((&refused, extent), image, drawn);
            let turn = record.broken_before.then_some(Turn::Anew);
            (self.state.pending[at].record, self.state.pending[at].turn) = (record, turn);
            return self.accept(own, fit, None);
        }
        // That one is final, without a place; the chain begins with this one.
        let reason = unsure.map_or_else(|reason| reason, |f| little(f.placed.confidence));
        let failed = Alignment::unplaced(own.view.serial, &own.view.name, Verdict::Failed { reason });
        let extent = [own.low, own.high];
        let map = self.start(extent);
        let image = Drawn::new(own.view.serial, own.image, own.view.origin, &map.0, self.config.reduction)?;
        let record = self.begin((&failed, extent), image, DrawnAs { serial: own.view.serial, map });
        let turn = record.broken_before.then_some(Turn::Anew);
        self.state.pending.push_back(Pending { turn, look: Some(own.look), ..Pending::new(record, extent) });
        Ok(())
    }

    /// Whether the place of a section on little of its tissue is to be believed, now that one laid onto it has come: where that lies the same
    /// by itself, or the share is well above what chance reaches.
    fn confirms(&self, at: usize, own: &Own<'_>, fit: &Fit, unsure: &Result<Fit, String>) -> bool {
        let halfway = (self.config.least_confidence + self.config.reference_confidence) / 2.0;
        let share = self.state.pending[at].record.confidence;
        share >= halfway
            || unsure.as_ref().is_ok_and(|other| {
                let part = |i: usize| (i as f64 + 0.5) / SAMPLES as f64;
                let at = |i: usize| {
                    let size = own.high - own.low;
                    own.low + Xy::new(size.x * part(i % SAMPLES), size.y * part(i / SAMPLES))
                };
                let off = |p: Xy<f64>| (fit.placed.map.apply(p) - other.placed.map.apply(p)).norm();
                let near = (0..SAMPLES * SAMPLES).filter(|i| off(at(*i)) <= SAME_PLACE_PX).count();
                2 * near > SAMPLES * SAMPLES
            })
    }

    /// A section whose place is not believed, where a chain would begin with it, and the next one laid onto it there.
    fn lifted(&mut self, at: usize, image: Drawn, own: &Own<'_>) -> Result<(Drawn, DrawnAs, Fit), String> {
        let pending = &mut self.state.pending[at];
        let why = little(pending.record.confidence);
        pending.unplace(format!("{why}, and the next section fits it but not that place"));
        let (serial, extent) = (pending.record.serial, pending.extent);
        let map = self.start(extent);
        let image = Drawn::new(serial, image.own, image.origin, &map.0, self.config.reduction)?;
        let drawn = DrawnAs { serial, map };
        let fit = self.fit(own, &[(&image, &drawn)])?;
        Ok((image, drawn, fit))
    }

    /// Begins a chain with a section that was refused; gives its record. A lone first section makes way for it.
    fn begin(&mut self, (refused, extent): (&Alignment, [Xy<f64>; 2]), image: Drawn, drawn: DrawnAs) -> Alignment {
        let reason = match &refused.verdict {
            Verdict::Failed { reason } => reason.clone(),
            _ => String::new(),
        };
        let (serial, map) = (refused.serial, drawn.map.clone());
        let verdict = if let Some(lone) = self.state.lone_first() {
            let text =
                format!("section {} and the next fit each other, but not this one, the first: {reason}", serial.0);
            self.state.pending[lone].unplace(text);
            self.drawn.clear();
            self.state.drawn.clear();
            self.state.drift = Some(Drift::none(serial.0, extent[0], extent[1], &self.config));
            Verdict::Reference
        } else {
            let references = self.config.references as usize;
            let after = self.state.drawn.front().map_or(serial, |d| d.serial);
            self.former = std::mem::take(&mut self.drawn);
            self.former.truncate(references);
            let last = std::mem::take(&mut self.state.drawn).into_iter().take(references).collect();
            let drift = self.state.former.take().and_then(|f| f.drift);
            self.state.former = Some(Former { drawn: last, drift });
            Verdict::NewStart { after, reason }
        };
        self.add_drawn(image, drawn);
        chains::start(serial, &refused.name, &map, verdict)
    }

    /// It has no place, or on too little of the tissue; kept in case that the next one fits it.
    fn refuse(&mut self, own: Own<'_>, unsure: Result<Fit, String>) -> Result<(), String> {
        let view = own.view;
        let (record, links, map) = match unsure {
            Ok(fit) => {
                let record = self.record(&own, &fit, None);
                let map = record.map.clone();
                (record, fit.links, map)
            }
            Err(reason) => {
                let map = self.start([own.low, own.high]);
                (Alignment::unplaced(view.serial, &view.name, Verdict::Failed { reason }), vec![], Some(map))
            }
        };
        let weak = record.map.is_some();
        let map = map.unwrap_or(SectionToVolume(Map::IDENTITY));
        let extent = [own.low, own.high];
        self.state.pending.push_back(Pending { links, look: Some(own.look), ..Pending::new(record, extent) });
        self.candidate = Some(Drawn::new(view.serial, own.image, view.origin, &map.0, self.config.reduction)?);
        self.state.candidate = Some(Candidate { drawn: DrawnAs { serial: view.serial, map }, weak });
        Ok(())
    }

    /// Where a section lies if a chain begins with it: turned and moved as the last accepted section is, from where the stage has it.
    fn start(&self, [low, high]: [Xy<f64>; 2]) -> SectionToVolume {
        let last = self.state.drawn.front().filter(|_| self.state.lone_first().is_none());
        let stiff = last.and_then(|d| drift::rigid_part(&d.map.0, low, high));
        SectionToVolume(stiff.map_or(Map::IDENTITY, Map::Affine))
    }

    /// The newest that others are laid onto; the oldest beyond the set number goes.
    fn add_drawn(&mut self, image: Drawn, drawn: DrawnAs) {
        self.drawn.push_front(image);
        self.state.drawn.push_front(drawn);
        self.drawn.truncate(self.config.images());
        self.state.drawn.truncate(self.config.images());
    }
}

/// Why a section with this share of consistent matches is not laid there.
fn little(share: f64) -> String {
    format!("matches are consistent on only {:.0} % of the common tissue", 100.0 * share)
}
