package gateway

import (
	"context"
	"net/http"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// metaSchema returns the schema in which a kind of metadata is answered.
func metaSchema(req memberapi.MetadataRequest) (*arrow.Schema, bool) {
	switch req.Kind {
	case memberapi.MetaCatalogs:
		return schema_ref.Catalogs, true
	case memberapi.MetaSchemas:
		return schema_ref.DBSchemas, true
	case memberapi.MetaTables:
		if req.IncludeSchema {
			return schema_ref.TablesWithIncludedSchema, true
		}
		return schema_ref.Tables, true
	case memberapi.MetaTableTypes:
		return schema_ref.TableTypes, true
	case memberapi.MetaPrimaryKeys:
		return schema_ref.PrimaryKeys, true
	case memberapi.MetaExportedKeys, memberapi.MetaImportedKeys, memberapi.MetaCrossReference:
		return schema_ref.ImportedExportedKeysAndCrossReference, true
	case memberapi.MetaTypeInfo:
		return schema_ref.XdbcTypeInfo, true
	}
	return nil, false
}

func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request) {
	var req memberapi.MetadataRequest
	if err := readRequest(w, r, &req); err != nil {
		writeError(w, err)
		return
	}
	s.serveStream(w, r, 0, func(ctx context.Context, st *streaming) error {
		return s.metadata(ctx, req, st)
	})
}

// metadata writes a source's description: through the connector's own abilities if it
// has them, else out of what every ADBC driver gives.
func (s *Server) metadata(ctx context.Context, req memberapi.MetadataRequest, st *streaming) error {
	schema, ok := metaSchema(req)
	if !ok {
		return errs.New(errs.Invalid, "there is no metadata of the kind %q", req.Kind).WithStep(errs.StepAdmit)
	}
	db, err := s.databases.acquire(req.Source)
	if err != nil {
		return err
	}
	defer s.databases.release(db)
	reader, err := special(ctx, db.Database, req)
	if err != nil {
		return atStep(errs.StepExecute, err)
	}
	if reader != nil {
		defer reader.Release()
		return st.described(ctx, schema, reader)
	}
	return s.withConnection(ctx, req.Source, req.Session, &st.stats, func(_ *database, conn adbc.Connection) error {
		reader, err := general(ctx, conn, req)
		if err != nil {
			return atStep(errs.StepExecute, err)
		}
		defer reader.Release()
		return st.described(ctx, schema, reader)
	})
}

// described copies an answer after a look at its schema, on which clients rely.
func (st *streaming) described(ctx context.Context, want *arrow.Schema, reader array.RecordReader) error {
	if got := reader.Schema(); !got.Equal(want) {
		return errs.New(errs.Internal, "the connector answers in the schema %s, not in %s", got, want).WithStep(errs.StepExecute)
	}
	return st.copy(ctx, reader)
}

// special asks the database itself; nil if it lacks the ability.
func special(ctx context.Context, db adbc.Database, req memberapi.MetadataRequest) (array.RecordReader, error) {
	switch req.Kind {
	case memberapi.MetaTables:
		if t, ok := db.(connector.TableReader); ok {
			return t.Tables(ctx, req)
		}
	case memberapi.MetaPrimaryKeys, memberapi.MetaExportedKeys, memberapi.MetaImportedKeys, memberapi.MetaCrossReference:
		if k, ok := db.(connector.KeyReader); ok {
			return keysOf(ctx, k, req)
		}
	case memberapi.MetaTypeInfo:
		if t, ok := db.(connector.TypeInfoReader); ok {
			return oneBatch(t.TypeInfo(ctx, req.DataType))
		}
	}
	return nil, nil
}

func keysOf(ctx context.Context, k connector.KeyReader, req memberapi.MetadataRequest) (array.RecordReader, error) {
	switch req.Kind {
	case memberapi.MetaPrimaryKeys:
		return oneBatch(k.PrimaryKeys(ctx, req.Table))
	case memberapi.MetaExportedKeys:
		return oneBatch(k.ForeignKeys(ctx, &req.Table, nil))
	case memberapi.MetaImportedKeys:
		return oneBatch(k.ForeignKeys(ctx, nil, &req.Table))
	}
	return oneBatch(k.ForeignKeys(ctx, &req.Table, &req.Other))
}

// oneBatch makes a reader of a batch, which it takes over.
func oneBatch(rec arrow.RecordBatch, err error) (array.RecordReader, error) {
	if err != nil {
		return nil, err
	}
	defer rec.Release()
	return array.NewRecordReader(rec.Schema(), []arrow.RecordBatch{rec})
}

// general makes the answer out of ADBC's own metadata.
func general(ctx context.Context, conn adbc.Connection, req memberapi.MetadataRequest) (array.RecordReader, error) {
	switch req.Kind {
	case memberapi.MetaTableTypes:
		return conn.GetTableTypes(ctx)
	case memberapi.MetaTypeInfo:
		return nil, errs.New(errs.Invalid, "the connector for %s can't list its types", req.Source.Type)
	}
	objects, err := readObjects(ctx, conn, req)
	if err != nil {
		return nil, err
	}
	switch req.Kind {
	case memberapi.MetaCatalogs:
		return catalogRows(objects)
	case memberapi.MetaSchemas:
		return schemaRows(objects)
	case memberapi.MetaTables:
		return tableRows(ctx, conn, objects, req.IncludeSchema)
	case memberapi.MetaPrimaryKeys:
		return primaryKeyRows(objects, req.Table)
	}
	return foreignKeyRows(objects, req)
}
